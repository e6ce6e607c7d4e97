"""What every command shares.

* :mod:`.command`: what a command is: its name, its config, its help, what its arguments look like. No Hydra.
* :mod:`.arguments`: rewrites what users type as Hydra takes it.
* :mod:`.run`: composes the config, calls, and turns a user's error into one line.
* :mod:`.overrides`: what was typed, for the command that runs.
* :mod:`.launch`: one run folder for all processes of a job.
"""
