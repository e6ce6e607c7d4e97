"""What an untrusted config may build.

* :mod:`.check`: refuses a config that names anything else.
* :mod:`.targets`: the names, and the arguments that each may be given.
* :mod:`.plain`: reads YAML and JSON into plain data.
"""
