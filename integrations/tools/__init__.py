"""Tool integrations, one folder per `integration_type`. A new type is one folder and one line in `registry`."""
