"""In-app purchase: grants, refunds, subscriptions, and to what they entitle."""
