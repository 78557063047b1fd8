"""The online side: gateway, replicas, adapters, metrics, request log."""
