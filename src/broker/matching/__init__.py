"""Pairing tasks with tools: pure logic, which knows neither HTTP nor a clock that it was not given.

kinds       equal needs are one kind, equal skills are one kind; what is judged, is judged for two kinds
strategies  what it means that skills meet needs: `contains`, `schema`, or a function of one's own
matcher     all that is known of the waiting tasks and the free tools
round       who gets whom
remarks     why a task has no tool
"""
