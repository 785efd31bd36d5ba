"""lora-train sweep: many runs as one study, worked on by any number of processes that share its folder.

command.py     the command, its table     study_file.py  what STUDY.yaml says, or every mistake in it (reading.py)
space.py       a grid, a Sobol sequence   plan.py        settings of the first round; the study as it is written
rounds.py      the trials that follow     tune.py        Optuna, where a study asks for it
folder.py      the only state there is    worker.py      claims trials and runs them
trial.py       a trial's process          outcome.py     how a trial ended, and why
measure.py     a dry run as a process     cost.py        what a study costs; one worker a GPU (measure.py)

    STUDY/study.yaml         the study with its base configuration, written once
    STUDY/claims/003.2/      the second attempt at trial 3, whose it is by having made this folder: its beat, outcome
    STUDY/trials/003.2/      its run folder

An attempt writes into folders that carry its number, and readers take the highest: a worker that was stopped, and wakes
up after another has taken its trial, writes where nobody looks. No clock is compared with another: a worker is lost
when its beat has not changed for so long by the clock of the one who watches.
"""
