"""An online shop's assistant: what does retrieval give it, what does fine-tuning, and what do both together?"""
