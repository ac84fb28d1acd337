"""How a rank works: stages side by side, with bounded room between them.

```
read, extract -> [steps, in threads] -> fill a batch   pool: the batches that exist
                                             |
                                   make messages of it   serializer thread
                                      |           |
                                   handler     handler   one thread and bounded queue each
```

A batch is filled again when every handler is done with every message of it. So the slowest
handler holds up everything before it, and memory has a bound: the batches of the pool.
"""
