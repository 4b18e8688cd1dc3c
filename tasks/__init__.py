"""Who runs it: the Celery app, its pool, thin tasks."""
