"""From the request log to the next dataset: what went wrong is picked, taught again, appended."""
