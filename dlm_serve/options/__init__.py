"""What a server file and a request may ask for, and the decode plan that the two become. Imports no SGLang."""
