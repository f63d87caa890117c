"""What an auditor is shown: what was spent, whether the records hold, and what an attacker gets."""
