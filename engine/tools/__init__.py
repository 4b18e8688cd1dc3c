"""Tools: specification, configuration, mappings, schemas and health."""
