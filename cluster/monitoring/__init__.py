"""What watches a cluster: Prometheus rules and alerts, Grafana dashboards."""
