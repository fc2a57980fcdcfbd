"""Files to text, and text to spans of whole sentences. No framework is imported here."""
