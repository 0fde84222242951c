"""Who computes attention: the public function, the table of capabilities, and the implementations."""
