"""Which samples a data set has, and where they are.

* :mod:`.lists`, :mod:`.samples`: annotation files and what they name.
* :mod:`.archives`, :mod:`.tar`: byte ranges of archives, and what a tar archive holds.
* :mod:`.video_index`, :mod:`.counting`: what is known of each video, and a progress bar.
* :mod:`.quarantine`: videos that cannot be read.
"""
