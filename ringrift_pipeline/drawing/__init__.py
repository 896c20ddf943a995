"""A board as text for a terminal or as an SVG picture, moves in words, and charts of reports.

Knows only `game`, and of it only records and the boards' tables; importing it compiles nothing.
"""
