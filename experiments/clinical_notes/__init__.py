"""From a doctor's talk with a patient to a note in fixed sections, in the wording of the house; see README.md."""
