"""What can be found out about this host before anything is captured.

`survey`, `installed` and `running` are for ``discover``. For ``doctor``: groups of checks, one file each; a check gives `Line`s
(see `lines`) and raises for nothing that a host lacks.
"""
