"""Answers in a fixed form with steps that are computed: form, arithmetic and result apart; see README.md."""
