"""What others may have made: run folders, configs, weights, data and caches that this process did not write.

* :mod:`.check`: refuses a config that names anything but what the allow-list holds.
* :mod:`.targets`: the allow-list, and the arguments that each name in it may be given.
* :mod:`.building`: builds the objects of a checked config from plain data.
* :mod:`.networks`: holds what is built to the size of its weights, and its forward pass to the memory of a machine.
* :mod:`.batches`: holds the data of a run to batches, workers and limits of a machine.
* :mod:`.plain`: reads YAML and JSON into plain data.
* :mod:`.opening`: opens regular files alone, without waiting and within a limit; makes folders of caches private.
* :mod:`.budgets`: what a file may cost: bytes, lines, tensors; :mod:`.containers` and :mod:`.images` the same of videos
  and images.
* :mod:`.naming`: turns names into file names, holds outputs inside their folder, says what an address is.
* :mod:`.showing`: text of others where it is printed, logged or written into a table.
"""
