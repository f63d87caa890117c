"""Who was in the data? What an attacker can tell, and the least epsilon that this proves."""
