"""Queries of operators: audits, statistics, stuck turns, job runs."""
