"""What continued pretraining on a new domain costs of an old one, with and without replay; see README.md."""
