"""How texts are drafted, alone or together, whatever the network is."""
