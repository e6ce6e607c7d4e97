"""What a run leaves, and how it is found again.

* :mod:`.names`: the names of all files and folders that runs, comparisons and searches leave.
* :mod:`.artifacts`: config, results and student of a run folder, read and written.
* :mod:`.metrics_csv`: ``metrics.csv``, read and written.
* :mod:`.contents`: config, card and results, read as data that others may have made.
* :mod:`.opened`: a run, found by its folder or weights file; :mod:`.run`: its models, data and results.
* :mod:`.resume`: which run ``resume=auto`` resumes.
* :mod:`.processes`: runs as processes of their own, alone in a folder.
"""
