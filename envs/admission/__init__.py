"""The rules of admission control: counts of a tick in, the limits of the next one out, for a batch of environments.

One definition with NGINX's (`actuators/nginx/lua`); docs/admission.md writes it down. No request is seen here.
"""
