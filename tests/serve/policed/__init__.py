"""Two modules on one deployment; a package, so that the deployment lives exactly as long."""
