"""What every command shares.

* :mod:`.command`: composes the config, calls, and turns a user's error into one line.
* :mod:`.arguments`: what users type, in Hydra's grammar.
* :mod:`.launch`: one run folder for all processes of a job.
"""
