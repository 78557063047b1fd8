"""Ground floor: strict configuration, Ray session, storage, adapter registry, metrics, prices."""
