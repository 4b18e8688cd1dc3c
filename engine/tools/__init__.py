"""Tool configuration, mappings, schemas and health."""
