"""How a sweep (`-m`) runs its jobs. Hydra finds what lies in a package called hydra_plugins, and nothing elsewhere."""
