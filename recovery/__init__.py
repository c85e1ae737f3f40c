"""Training that lets a model live with a policy. Imports of skipsearch nothing but `policies`."""
