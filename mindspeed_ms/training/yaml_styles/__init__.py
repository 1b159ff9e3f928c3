"""The styles in which YAML files write a configuration."""
