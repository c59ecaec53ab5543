"""Every command of ``brain2img``: what it is for, the function it calls, the configuration it begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

CHAIN, ANALYSES, STUDIES = "The chain", "What is asked of finished runs", "Studies and weights"


@dataclass(frozen=True)
class Command:
    """One command.

    Parameters
    ----------
    name
        What is typed.
    group
        Under which heading it is listed.
    function
        Its function in the package, which takes a configuration; imported when it runs.
    help
        One line, examples, notes.
    root
        File of ``configs/`` that it begins with; "" for the one of its name.
    completed
        How what Hydra composes is made complete, see `brain2img.command_line.resolve`: as an "experiment", an
        "adaptation", an "ablation", published "models" or a "study"; "" where it is complete.
    """

    name: str
    group: str
    function: str
    help: str
    root: str = ""
    completed: str = "experiment"

    @property
    def line(self) -> str:
        """What it does, in one line."""
        return self.help.partition("\n")[0]

    def load(self) -> Callable[[Any], Any]:
        """Return its function."""
        module, _, name = self.function.rpartition(".")
        found: Callable[[Any], Any] = getattr(import_module(f"brain2img.{module}"), name)
        return found


COMMANDS = {command.name: command for command in (
    Command("pipeline", CHAIN, "pipeline.pipeline", root="base", help="""\
All stages of an experiment that are not finished, then the scores and the report.

brain2img pipeline experiment=demo
brain2img pipeline experiment=demo modalities=[meg] paths.outputs=<folder>
brain2img pipeline experiment=demo study=nsd raw=<NSD>
brain2img pipeline experiment=digit69 raw=<digit69_28x28.mat>
"""),
    Command("prepare", CHAIN, "stages.prepare.prepare", root="base", help="""\
Raw recordings and stimuli -> a prepared study under outputs/prepared.

brain2img prepare experiment=demo
brain2img prepare study=scenes_eeg study.n_subjects=10
brain2img prepare study=digit69 raw=<digit69_28x28.mat>
"""),
    Command("embed", CHAIN, "stages.embed.embed", root="base", help="""\
Stimuli -> embeddings of the chosen spaces under outputs/cache.

brain2img embed experiment=demo
brain2img embed study=scenes_fmri space=[clip_vit_h14,pixels]
"""),
    Command("train", CHAIN, "stages.train.train", root="base", help="""\
Prepared study + embeddings -> a trained decoder under outputs/train; goes on where it was interrupted.

brain2img train experiment=demo/fmri_mindbridge
brain2img train experiment=demo/eeg_atm name=long trainer.max_epochs=100
brain2img train experiment=demo/fmri_ridge data.subjects=[sub-01]
"""),
    Command("predict", CHAIN, "stages.predict.predict", root="base", help="""\
A trained run -> decoded embeddings, with the control conditions, under outputs/predictions.

brain2img predict run=outputs/train/demo/fmri_mindbridge
brain2img predict run=outputs/train/demo/eeg_atm conditions=[decoded,noise]
"""),
    Command("fit_prior", CHAIN, "stages.fit_prior.fit_prior", root="base", help="""\
Predictions of stimuli a decoder has not seen -> a prior under outputs/priors, which later stages then use.

brain2img fit_prior run=outputs/train/demo/fmri_ridge prior=affine
brain2img fit_prior run=outputs/train/demo/eeg_atm prior=diffusion prior_fit.source=validation
"""),
    Command("apply_prior", CHAIN, "stages.apply_prior.apply_prior", root="base", help="""\
Predictions + a fitted prior -> a sample of the prior for each, which reconstruct and caption then read.

brain2img apply_prior run=outputs/train/demo/fmri_ridge prior=affine
brain2img reconstruct run=outputs/train/demo/fmri_ridge prior=affine overwrite=true
"""),
    Command("reconstruct", CHAIN, "stages.reconstruct.reconstruct", root="base", help="""\
Predictions -> images under outputs/reconstructions.

brain2img reconstruct run=outputs/train/demo/fmri_mindbridge
brain2img reconstruct run=outputs/train/demo/eeg_atm reconstructor=[nearest_training_image]
"""),
    Command("caption", CHAIN, "stages.caption.caption", root="base", help="""\
Predictions -> captions under outputs/captions.

brain2img caption run=outputs/train/demo/fmri_mindbridge captioner=[prefix_small]
brain2img caption run=outputs/train/demo/eeg_atm captioner=[prefix_small,nearest_caption]
"""),
    Command("evaluate", CHAIN, "stages.evaluate.evaluate", root="base", help="""\
Predictions and reconstructions -> scores, summary.json, grid.png and report.html under outputs/scores.

brain2img evaluate experiment=demo
brain2img evaluate run=outputs/train/demo/fmri_mindbridge
"""),
    Command("adapt", CHAIN, "stages.adapt.adapt", completed="adaptation", help="""\
A trained run + a new subject -> a run for this subject under outputs/train; goes on where it was interrupted.

brain2img adapt run=outputs/train/seven subject=sub-08
brain2img adapt run=outputs/train/seven subject=sub-08 trials=200 steps=300 trainer.lr=1e-3
brain2img adapt run=outputs/train/seven subject=sub-08 trials=1h mode=full source_subjects=[]
brain2img predict run=outputs/train/seven_sub-08_reset_200
"""),
    Command("import_weights", CHAIN, "stages.import_weights.import_weights", help="""\
A published checkpoint -> a run under outputs/train that predict and the stages after it can use.

The study must be prepared and its stimuli embedded. Every weight must find its place; the report stands in the run.

brain2img import_weights weights=<file>.pth experiment=published/mindbridge_subj1257 raw=<NSD>
brain2img import_weights weights=<file>.pth experiment=published/mindbridge_subj01
brain2img import_weights weights=<file>.pth layout=atm experiment=published/atm_s_sub08 raw=<THINGS-EEG2>
    encoder.published_slice=true
"""),
    Command("compare", ANALYSES, "analyses.compare.compare", completed="", help="""\
Several runs side by side, one line a run, under outputs/compare: Markdown for a README, CSV, parquet, figure, page.

brain2img compare runs=[demo]
brain2img compare runs=[outputs/scores/scenes/mindbridge,outputs/train/scenes/mindeye,demo] name=table

Reads what was written and computes nothing anew but paired differences. Runs of different studies, galleries or
repetitions stand in different tables.
"""),
    Command("repetitions", ANALYSES, "analyses.repetitions.repetitions", root="base", help="""\
Accuracy over the number of averaged repetitions of a test stimulus, under outputs/repetitions.

brain2img repetitions run=outputs/train/demo/eeg_atm
brain2img repetitions experiment=demo/eeg_atm repetition_curve.n_draws=10 repetition_curve.counts=[1,5,20]
"""),
    Command("time_course", ANALYSES, "analyses.time_course.time_course", root="base", help="""\
Decoding in a sliding window over the epoch (EEG, MEG), under outputs/time_course.

brain2img time_course run=outputs/train/demo/eeg_ridge
brain2img time_course experiment=demo/eeg_ridge time_course.width=0.04 time_course.step=0.02
"""),
    Command("windows", ANALYSES, "analyses.windows.windows", help="""\
When and where: decoding from growing and sliding windows (EEG, MEG) and from regions, under outputs/windows.

brain2img windows run=outputs/train/demo/eeg_ridge
brain2img windows run=outputs/train/scenes_eeg/atm windows.how=mask windows.sensors=true name=atm_mask
brain2img windows experiment=scenes_eeg/atm windows.growing=[] windows.sliding.step=0.02 windows.regions=false
"""),
    Command("regions", ANALYSES, "analyses.regions.regions", help="""\
Retrieval and reconstruction from the voxels of one set of regions at a time, under outputs/regions.

brain2img regions run=outputs/train/demo/fmri_ridge
brain2img regions run=outputs/train/demo/fmri_mindbridge regions.method=mask regions.part=without
brain2img regions run=<run> "regions.sets={early:[V1,V2,V3],late:[FFA,PPA]}" regions.reconstruct=true
"""),
    Command("importance", ANALYSES, "analyses.importance.importance", help="""\
Voxel-importance maps (NIfTI, slices, sums by region) of a trained decoder, under outputs/importance.

brain2img importance run=outputs/train/demo/fmri_ridge
brain2img importance run=outputs/train/scenes/vit3d importance.method=occlusion importance.block=4
"""),
    Command("scaling", ANALYSES, "analyses.scaling.scaling", help="""\
Accuracy over amounts of training data and a log-linear law of it, by hardware, under outputs/scaling.

brain2img scaling experiment=scenes_eeg/protocols/ridge_in_subject name=trials scaling.amounts=[100,200,400,800]
brain2img scaling experiment=scenes_eeg/protocols/ridge_in_subject name=hardware hardware=eeg scaling.link=logit
brain2img scaling experiment=scenes_eeg/protocols/atm_joint name=subjects scaling.axis=subjects \
    scaling.amounts=[1,2,4] scaling.extrapolate=[10] split.train_trials=400
"""),
    Command("sweep", ANALYSES, "analyses.sweep.sweep", completed="adaptation", help="""\
Accuracy over amounts of a new subject's data, adapted against trained on it alone, under outputs/sweeps.

brain2img sweep run=outputs/train/seven subject=sub-08 trials=[50,100,200,400,800,1600]
brain2img sweep run=outputs/train/seven subject=sub-08 trials=[15min,1h,null] n_draws=3 steps=600
brain2img sweep run=outputs/train/seven subject=sub-08 name=choice predict_split=val dedicated.lr=1e-3
"""),
    Command("ablate", ANALYSES, "analyses.ablate.ablate", completed="ablation", help="""\
An experiment without each of its parts, beside a baseline: table, figure and page under outputs/ablations.

brain2img ablate name=recipe
brain2img ablate name=quick ablation.n_seeds=1 trainer.max_epochs=5
"""),
    Command("ensemble", ANALYSES, "analyses.ensemble.ensemble", completed="", help="""\
Mean of the predictions of several runs, as predictions of a name of their own that later stages take as any other.

brain2img ensemble runs=[atm_seed0,atm_seed1,atm_seed2] name=atm_three
brain2img evaluate run=outputs/train/atm_three
"""),
    Command("synthesise", ANALYSES, "analyses.synthesise.synthesise", root="base", help="""\
A trained MindBridge run -> each subject's voxels for what the others saw, compared with the real ones.

brain2img synthesise run=outputs/train/scenes/mindbridge
brain2img synthesise run=outputs/train/scenes/mindbridge predict_split=val name=check
"""),
    Command("parameters", ANALYSES, "analyses.parameters.parameters", completed="models", help="""\
Counts the parameters of every published model at its published size, and compares them with the publication.

brain2img parameters
brain2img parameters models=[published/mindbridge_subj01,published/mindbridge_subj1257]
brain2img parameters models=[published/mindbridge_subj01] encoder.n_blocks=2

Nothing is trained or downloaded, and no memory is used: the models are built on the meta device. Ends with exit code 1
where live and dead parameters do not add up to the published total and the experiment states no reason.
"""),
    Command("deviations", ANALYSES, "analyses.deviations.deviations", root="parameters", completed="models", help="""\
What deviates from the publications, why, and which setting takes it back; written into the pages of the systems.

brain2img deviations
brain2img deviations models=[published/atm_s_sub08]
brain2img deviations pages=docs/systems

The experiments state them, in published.deviations. A page takes its table between the lines <!-- deviations --> and
<!-- end of deviations -->.
"""),
    Command("legacy_last_epochs_mean", ANALYSES, "analyses.legacy_last_epochs_mean.legacy_last_epochs_mean", help="""\
Mean test accuracy over the last epochs, as in ATM's old tables; to compare with those alone, not for new results.

The run must have kept these epochs: trainer=atm_last_epochs, or +trainer.keep_last=10. It looks at the test data once
an epoch; results of a model are those of evaluate.

brain2img train experiment=published/atm_s_sub08 trainer=atm_last_epochs name=old_table
brain2img legacy_last_epochs_mean run=outputs/train/old_table
brain2img legacy_last_epochs_mean run=outputs/train/old_table last_epochs=5 headline.space=clip
"""),
    Command("verify", ANALYSES, "stages.verify.verify", completed="", help="""\
Finished folders -> whether every file in them is still the one that was written; exit code 1 where one is not.

brain2img verify
brain2img verify folder=outputs/train/demo/mindbridge
brain2img verify folder=outputs/prepared record=true    # of an older version: keeps hashes from now on

Stages compare what they read themselves; this looks at all files, those that no stage has read for long included.
"""),
    Command("check", STUDIES, "stages.check.check", root="base", completed="study", help="""\
What is understood of a study, what is missing and what looks wrong, before anything long is run.

brain2img check study=arrays raw=<folder> study.modality=eeg study.units=uV study.sfreq=250 study.tmin=-0.2
brain2img check study=bids raw=<BIDS folder>
It prepares the study, draws figures and prints the command that runs the whole chain; docs/own_data.md.
"""),
    Command("new_study", STUDIES, "stages.new_study.new_study", completed="", help="""\
An example of a study of your own in the files that study=arrays reads: 12 pictures shown 10 times, simulated.

brain2img new_study raw=<new folder>
brain2img new_study raw=<new folder> modality=fmri n_stimuli=20

Replace its files by yours; README.txt in it explains each. It says how to check it.
"""),
    Command("download", STUDIES, "stages.download.download", completed="", help="""\
The raw files of a study, from the services that hold them; see <study>.md for its terms, size and folders.

brain2img download study=nsd subjects=[1] list=true
brain2img download study=nsd subjects=[1] sessions=[1,2,3] accept_terms=true raw=<folder>
brain2img download study=things_eeg2 subjects=[1,2] study.form=preprocessed accept_terms=true
brain2img download study=things_meg only=[epochs,design]
"""),
    Command("simulate", STUDIES, "stages.simulate.simulate", completed="", help="""\
A small simulated study in the folders and files of a real one, to try the chain before the data are there.

brain2img simulate study=things_eeg2
brain2img simulate study=nsd study.form=nifti raw=<folder> simulate.source.snr=0.2

It says how to run the pipeline on what it wrote.
"""),
    Command("train_small_backbones", STUDIES, "small_backbones.train.train_small_backbones", completed="",
            help="""\
Scenes -> the small backbones of the simulated study, under outputs/backbones; goes on where it was interrupted.

brain2img train_small_backbones
brain2img train_small_backbones parts=[clip] clip.steps=3000 name=longer
brain2img train_small_backbones install=true     # copy the weights into the package when done
"""),
)}
