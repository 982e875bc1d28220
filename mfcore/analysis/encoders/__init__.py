"""What encoders are worth, as kaiko 2024 asks: pretrainings, downstream tasks, representations."""
