"""One entry point a stage, the pipeline that chains them, the command line."""
