"""What operators ask: audits, statistics, stuck turns, job runs."""
