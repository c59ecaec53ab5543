"""Installs the versions of the lock into a virtual environment, and finds out whether what is installed can be used.

``make install`` runs this file by its path with whatever Python there is, so that it needs the standard library alone
and has no syntax younger than Python 3.6: an old Python shall get a message, not a traceback.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys

OLDEST = (3, 11)
ROOM = 8  # GB that an installation needs at the most; the CUDA libraries of PyTorch are most of it
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LOCK = os.path.join(ROOT, "requirements.lock")
CAUSES = (
    (r"No space left|[Dd]isk quota exceeded|os error (28|122)",
     "room on the disk, got a full one (or a quota). Free about {room} GB for the environment and the cache of "
     "packages; UV_CACHE_DIR (PIP_CACHE_DIR) and VENV=<folder> set other places"),
    (r"certificate|CERTIFICATE",
     "a package index with a certificate that this machine knows, got another. Name that of your network in "
     "SSL_CERT_FILE"),
    (r"dns error|lookup address|[Nn]ame or service|name resolution|[Nn]etwork is unreachable|[Cc]onnection refused|"
     r"[Cc]onnect(ion)? error|error sending request|timed? ?out|[Pp]roxy|No route to host|Failed to fetch|ConnectError",
     "to reach a package index, got no connection. Look at the network and at the settings of a proxy or a mirror "
     "(HTTPS_PROXY; UV_DEFAULT_INDEX or PIP_INDEX_URL)"),
    (r"[Hh]ash(es)? (mismatch|do not match)|DO NOT MATCH",
     "the files whose hashes the lock holds, got others. A mirror or a broken download: clear the cache (uv cache "
     "clean) and try again"),
    (r"no wheels? with a matching|No matching distribution|only have wheels|requires-python|incompatible",
     "releases of every package for this Python and machine, got none of one of them. Take another Python, e.g. "
     "make install PYTHON=python3.12"),
)


class Refusal(Exception):
    """Something that the user can mend; its text says how."""


def usable_python() -> str:
    """Return a Python of `OLDEST` or newer: the running one, else another on the PATH."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in (13, 12, 11, 14):
        found = shutil.which("python3.%d" % minor)  # noqa: UP031
        if found and subprocess.call([found, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            say("{} is Python {}.{}; {} is taken".format(sys.executable, *sys.version_info[:2], found))
            return found
    raise Refusal("Python: expected {}.{} or newer, got {}.{} ({}) and no newer one on the PATH. Install one, or name "
                  "it: make install PYTHON=<python3.11>".format(*OLDEST, *sys.version_info[:2], sys.executable))


def say(text: str) -> None:
    """Tell the user a line."""
    sys.stdout.write(f"install: {text}\n")
    sys.stdout.flush()


def call(command: list, *, what: str) -> None:
    """Run a command, show what it says, and turn its failure into a message about the cause."""
    environment = dict(os.environ)
    if "UV_DEFAULT_INDEX" not in environment and environment.get("PIP_INDEX_URL"):
        environment["UV_DEFAULT_INDEX"] = environment["PIP_INDEX_URL"]  # a mirror that pip knows
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                               env=environment, cwd=ROOT)
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        sys.stdout.write("  " + line)
        sys.stdout.flush()
    if process.wait() != 0:
        text = "".join(lines[-60:])
        cause = next((words for pattern, words in CAUSES if re.search(pattern, text)),
                     "it to end well, got exit code {code}. What it said stands above")
        cause = cause.format(room=ROOM, code=process.returncode)
        raise Refusal(f"{what}: expected {cause}. Then run make install again")


def key(extras: str, latest: bool) -> str:
    """Return what an environment is made from: another key, another environment."""
    state = hashlib.sha256(repr((extras, latest, ROOT)).encode())
    for path in (os.path.join(ROOT, "pyproject.toml"), *([] if latest else [LOCK])):
        with open(path, "rb") as file:
            state.update(file.read())
    return state.hexdigest()


def runs(python: str) -> bool:
    """Tell whether an interpreter is there and starts."""
    return os.path.exists(python) and subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0


def make_environment(venv: str) -> None:
    """Make an empty virtual environment, in place of what an interrupted installation left."""
    if os.path.isdir(venv) and os.listdir(venv):
        if not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
            raise Refusal(f"{venv}: expected a virtual environment or nothing, got a folder with other files. Move it "
                          "away, or choose another place with VENV=<folder>")
        say(f"{venv} was left by an interrupted installation, or its Python is gone: it is made anew")
        for name in os.listdir(venv):  # the folder itself may be a link to another disk
            path = os.path.join(venv, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
    os.makedirs(venv, exist_ok=True)
    free = shutil.disk_usage(venv).free / 1e9
    if free < ROOM:
        raise Refusal(f"disk: expected {ROOM} GB free for {venv}, got {free:.1f} GB. Free some, or choose another "
                      "place with VENV=<folder>")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if made.returncode == 0:
        return
    if shutil.which("uv"):
        call(["uv", "venv", "--seed", "--clear", "--python", sys.executable, venv], what="uv venv")
    elif "ensurepip" in made.stdout or "No module named venv" in made.stdout:
        raise Refusal(f"{sys.executable}: expected a Python with its modules venv and ensurepip, got one without. "
                      "Debian and Ubuntu keep them apart: apt install python3-venv (python3.12-venv for 3.12); or "
                      "have uv on the PATH")
    else:
        raise Refusal(f"{venv}: expected to make a virtual environment, got:\n{made.stdout}")


def install(venv: str, *, extras: str, latest: bool, installer: str) -> None:
    """Bring an environment to the versions of the lock (or to the newest that are allowed), if it is not there yet."""
    python, stamp = os.path.join(venv, "bin", "python"), os.path.join(venv, ".installed")
    wanted = key(extras, latest)
    if os.path.exists(stamp) and runs(python):
        with open(stamp) as file:
            if file.read() == wanted:
                return
        os.remove(stamp)
    else:
        make_environment(venv)
    ours = ["-e", f"{ROOT}[{extras}]"]
    if installer == "uv":
        with open(LOCK) as file:
            release = re.search(r"^uv==[^\s;]+", file.read(), re.MULTILINE)
        assert release, LOCK
        call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", release.group()], what="pip")
        pip = [os.path.join(venv, "bin", "uv"), "pip", "install", "--python", python]
    else:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    say("{} into {} ({})".format("the newest versions allowed" if latest else "the versions of requirements.lock", venv,
                                 "some minutes and gigabytes where they are not in the cache yet"))
    if latest:
        call([*pip, "--upgrade", *ours], what=installer)
    else:
        call([*pip, "--require-hashes", "-r", LOCK], what=installer)
        call([*pip, "--no-deps", *ours], what=installer)
    if latest and subprocess.call([python, "-m", "brain2img.installation", "--check"]) != 0:
        raise Refusal("libraries: expected all to be usable, got what stands above")
    with open(stamp, "w") as file:
        file.write(wanted)


def requirements() -> dict:
    """Return name -> (release that is installed, why it is not among those asked for or ""), of all that we lead to."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict = {}
    waiting = [Requirement("brain2img[all]")]
    visited = set()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if (name, *sorted(asked.extras)) in visited:
            continue
        visited.add((name, *sorted(asked.extras)))
        try:
            there = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra that was not installed
        for line in there.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *asked.extras)):
                waiting.append(needed)
                if name == "brain2img":
                    found[canonicalize_name(needed.name)] = needed.specifier
        found.setdefault(name, None)
    result = {}
    for name, specifier in found.items():
        try:
            release = distribution(name).version
        except PackageNotFoundError:
            continue
        fits = specifier is None or specifier.contains(release, prereleases=True)
        result[name] = (release, "" if fits else f"{specifier} was asked for")
    return result


def broken_libraries(only: tuple = ()) -> list:
    """Import, in another process, every library that ours lead to, also those that they import behind our back.

    Parameters
    ----------
    only
        Names of modules, where not all are asked for.

    Returns
    -------
    list of str
        A line for each one that cannot be used: its name and release, what happened, and what to do.
    """
    from importlib.metadata import packages_distributions

    from packaging.utils import canonicalize_name

    known = requirements()
    modules = sorted(module for module, names in packages_distributions().items()
                     if (module in only or not only) and module.isidentifier() and module not in ("tests", "nvidia")
                     and not module.startswith("_") and any(canonicalize_name(name) in known for name in names))
    code = (f"import importlib, warnings\nwarnings.simplefilter('ignore')\nfor name in {modules!r}:\n"
            "    print('>', name, flush=True)\n    try: importlib.import_module(name)\n"
            "    except BaseException as error:\n"
            "        print('!', type(error).__name__, ' '.join(str(error).split())[:300], flush=True)\n")
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         check=False)
    failed, module = {}, ""
    for line in run.stdout.splitlines():
        if line.startswith("> "):
            module = line[2:]
        elif line.startswith("! "):
            failed[module] = line[2:]
    if run.returncode != 0:
        failed[module] = f"the process ended with code {run.returncode}"
    owner = packages_distributions()
    lines = [f"{name} {known[canonicalize_name(owner[name][0])][0]}: expected a library that can be imported, got "
             f"{what}. {CURE}" for name, what in failed.items()]
    return lines + [f"{name} {release}: {why}. {CURE}" for name, (release, why) in known.items() if why]


CURE = ("make install brings back the versions of requirements.lock; beside other packages, install it in a release "
        "that belongs to the installed torch (torch, torchvision and torchaudio go together), or remove it where no "
        "one needs it.")


def main() -> int:
    """Install, or check what is installed; returns the exit code."""
    parser = argparse.ArgumentParser(description="Install brain2img into a virtual environment.")
    parser.add_argument("--venv", default=".venv")
    parser.add_argument("--extras", default="all,dev")
    parser.add_argument("--installer", choices=("uv", "pip"), default="uv")
    parser.add_argument("--latest", action="store_true", help="the newest versions that pyproject.toml allows")
    parser.add_argument("--check", action="store_true", help="only say which installed libraries cannot be used")
    asked = parser.parse_args()
    if asked.check:
        lines = broken_libraries()
        sys.stderr.write("".join(line + "\n" for line in lines))
        return int(bool(lines))
    import fcntl

    try:
        python = usable_python()
        if python != sys.executable:
            os.execv(python, [python, *sys.argv])
        descriptor = os.open(ROOT, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a second make waits for the first
        install(os.path.join(ROOT, asked.venv), extras=asked.extras, latest=asked.latest, installer=asked.installer)
    except Refusal as refusal:
        sys.stderr.write(f"install: {refusal}.\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"install: {error.filename}: expected to read or write it, got {error.strerror}. Look at its "
                         "permissions and at the disk.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
