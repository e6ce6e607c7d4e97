"""PaddleVideo's configs, converted; its weights are read by :mod:`lit_distill.models.paddle`.

* :mod:`.config`: model and data sections.
* :mod:`.training`: losses, optimizer and schedule.
* :mod:`.yaml_lines`: where in a YAML file a key stands.
"""
