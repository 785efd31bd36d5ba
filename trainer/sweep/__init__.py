"""lora-train sweep: many runs as one study, worked on by any number of processes that share its folder.

study_file.py  what STUDY.yaml says, or every mistake in it      plan.py    the settings of each trial, round after round
space.py       ranges; a grid, a Sobol sequence                   tune.py    Optuna, where a study asks for it
folder.py      the study on disk: the only state there is         worker.py  claims trials and runs them
trial.py       a trial's process                                  table.py   what is printed
cost.py        what it costs, measured in a process of its own    device.py  one worker a GPU

    STUDY/study.yaml         the study with its base configuration, written once
    STUDY/claims/003.2/      the second attempt at trial 3, whose it is by having made this folder: its beat, outcome
    STUDY/trials/003.2/      its run folder

An attempt writes into folders that carry its number, and readers take the highest: a worker that was stopped, and wakes
up after another has taken its trial, writes where nobody looks. No clock is compared with another: a worker is lost
when its beat has not changed for so long by the clock of the one who watches.
"""
