"""Recipe, engine, checkpoints, events: training any task's adapter, knowing no task and no method."""
