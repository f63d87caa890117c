"""For whom does joining pay, and at which epsilon? Many runs side by side, and statistics."""
