"""The client of DSG: the ``dsg`` command and what it stands on."""
