"""Speed, memory and agreement, measured beside what a user would pick instead."""
