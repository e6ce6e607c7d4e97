"""Which samples a data set has, and where they are.

* :mod:`.lists`, :mod:`.samples`: annotation files and what they name.
* :mod:`.archives`, :mod:`.tar`, :mod:`.shards`: folders, archives and tar shards.
* :mod:`.video_index`, :mod:`.checking`, :mod:`.counting`: one look through all videos, with a progress bar.
* :mod:`.quarantine`: videos that cannot be read.
"""
