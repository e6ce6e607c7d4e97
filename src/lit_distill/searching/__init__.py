"""What is behind ``search``.

* :mod:`.space`: the settings that are searched.
* :mod:`.study`: trials, each a process, and their record.
"""
