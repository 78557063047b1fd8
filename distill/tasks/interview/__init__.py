"""Interview questions: a generic algorithm problem, retold for a company and a role."""
