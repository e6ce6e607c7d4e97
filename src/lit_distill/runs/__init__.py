"""What a run leaves, and how it is found again.

* :mod:`.artifacts`: the files of a run folder and their forms.
* :mod:`.opened`: a run folder opened: its models, data and results.
* :mod:`.classifier`: a classifier from a run.
* :mod:`.resume`: which run ``resume=auto`` resumes.
"""
