"""Plants faults in short real runs and checks what the trainer says about them, and that it is silent without one.

`python -m benchmarks.faults --seed 1` draws cases (draw.py) from the seed, runs each through the trainer with
`precision.on_collapse` stop and heal while a plant (plant.py) breaks something at its step, and holds what is on disk
afterwards against what is known (check.py).
"""
