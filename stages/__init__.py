"""One thin runner a stage: reads the config, calls the room that does the work, writes the manifest."""
