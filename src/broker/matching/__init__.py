"""Pair tasks with tools: pure logic without I/O, which reads the time only from the clock it gets.

candidates   the parts of the broker's responses that the assigner needs
needs        all waiting tasks with equal needs
skills       all free tools with equal skills
interning    finds the needs and skills of a JSON text
strategies   decide whether skills meet needs: `contains`, `json_schema` or a function
judge        asks the strategy once for each pair of needs and skills
matcher      holds the waiting tasks and the free tools
round        decides which task gets which tool
remarks      finds the reasons why tasks wait
explanation  describes such a reason in a few sentences
unmatched    finds needs and skills that never match
"""
