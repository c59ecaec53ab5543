"""One function per script; the only code that knows Hydra."""
